// What a dashboard must be for Grafana, from Grafana's own types. Compiled together with the dashboards as constants; nothing
// of it runs.
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from '@grafana/schema';
import type { Options as HeatmapOptions } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type { FieldConfig as TimelineFields, Options as TimelineOptions } from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen.d.ts';
import type { Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts';
import type { FieldConfig as SeriesFields, Options as SeriesOptions } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';

// JSON has the values of enumerations, not their names.
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
    : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

type Fields = NonNullable<Plain<Panel>['fieldConfig']>;

// The queries of the Prometheus data source, which have no schema in this package.
type Query = DataQuery & {
    expr: string; legendFormat: string; format: 'time_series' | 'table' | 'heatmap'; editorMode: 'code'; instant: boolean;
    range: boolean; datasource: { type: 'prometheus'; uid: string };
};

type Of<Kind extends string, Options, Custom> = Omit<Plain<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
    type: Kind;
    targets: Query[];
    options: Partial<Plain<Options>>;
    fieldConfig: { defaults: Omit<Fields['defaults'], 'custom'> & { custom: Partial<Plain<Custom>> }; overrides: [] };
};

type Shown = Of<'timeseries', SeriesOptions, SeriesFields> | Of<'stat', StatOptions, {}> | Of<'heatmap', HeatmapOptions, {}>
    | Of<'table', TableOptions, {}> | Of<'state-timeline', TimelineOptions, TimelineFields> | Plain<RowPanel>;

// titleFormat is read by the Prometheus data source and not in the schema.
type Mark = Omit<Plain<AnnotationQuery>, 'target'> & { titleFormat: string; target: DataQuery & { expr: string; interval: string } };

export type Expected = Omit<Plain<Dashboard>, 'panels' | 'annotations'> & { panels: Shown[]; annotations: { list: Mark[] } };
